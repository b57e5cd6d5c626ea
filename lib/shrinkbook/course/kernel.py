"""nbgrader's execution, with a kernel in the sandbox, and with outputs that can do nothing to who reads them."""

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader.preprocessors import Execute
from traitlets import Any as Anything
from traitlets import Bool, Unicode, default

from shrinkbook.course.sandbox import MIB, SHARED, Limits, Request

CUT = "[the rest of the output was cut off]\n"
LIE = "a check that must fail passed: the submission changes how cells are run; read it"
NOT_RUN = "This cell was not run to its end."
BACKLOG = 100  # messages of the kernel that wait in the grader's memory


class BoxedKernel(AsyncKernelManager):
    """Starts the keeper of a sandbox, whatever kernel the notebook names; talks to it over Unix sockets."""

    library = Unicode(help="folder of the laid-out library").tag(config=True)
    safe = Bool(True, help="False runs the kernel without walls").tag(config=True)
    limits = Anything(Limits()).tag(config=True)

    def __init__(self, **options: Any) -> None:
        shared = SHARED if os.access(SHARED, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="shrinkbook-box-", dir=shared))  # a socket's path has 108 letters
        (self.folder / "sockets").mkdir(mode=0o700)
        super().__init__(
            **{**options, "transport": "ipc", "connection_file": str(self.folder / "sockets" / "kernel.json")}
        )

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        context = zmq.asyncio.Context()
        self._created_context = True
        context.setsockopt(zmq.MAXMSGSIZE, 2 * self.limits.printed * MIB)
        context.setsockopt(zmq.RCVHWM, BACKLOG)
        return context

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel there is; interrupted by a message, since a signal would reach its keeper."""
        request = Request(str(self.folder), self.library, self.safe, self.limits)
        argv = [sys.executable, "-m", "shrinkbook.course.sandbox", str(request.write())]
        return KernelSpec(argv=argv, display_name="sandbox", language="python", interrupt_mode="message")

    def ended(self) -> str:
        """Why the keeper ended the kernel, empty if it did not."""
        path = self.folder / "ended"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def last_words(self) -> str:
        """The last line that the sandbox itself had to say."""
        path = self.folder / "errors"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return lines[-1][:200] if lines else ""

    def remove(self) -> None:
        """Remove what the kernel left, folders nested without end or closed to their owner too."""
        for words in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*words, str(self.folder)], capture_output=True)


class BoxedExecute(Execute):
    """Executes a submission in the sandbox; a check that did not run to its end without an error has failed.

    ``note`` says afterwards what happened to the submission as a whole, empty if nothing did.
    """

    note = ""
    shutdown_kernel = "immediate"

    def create_kernel_manager(self) -> BoxedKernel:
        """A kernel in a new sandbox, whatever the notebook asks for."""
        self.km = self.kernel = BoxedKernel(config=self.config)
        return self.km

    def preprocess(self, nb: NotebookNode, resources: Any = None, km: Any = None) -> tuple[NotebookNode, Any]:
        """Run all cells. Whatever the kernel does, this notebook comes back, with outputs of text and pictures."""
        metadata, died = deepcopy(nb.metadata), ""
        self.finished: set[int] = set()  # cells that ran to their end without an error
        self.printed, self.ran = 0, False
        token = secrets.token_hex(8)
        nb.cells.append(new_code_cell(f"assert not {token!r}, {token!r}"))  # fails, unless the kernel lies
        try:
            super().preprocess(nb, resources)
        except Exception as error:  # a kernel that dies, or lies, ends its own submission and no other
            died = f"ended by {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            died = {CellTimeoutError: "timed out", DeadKernelError: "kernel died"}.get(type(error), died)
            died += "" if self.ran else f" ({self.kernel.last_words()})"
        finally:
            self.note = self.kernel.ended() or (died if died.isprintable() else ascii(died))
            self.kernel.remove()
        nb.cells.pop()
        if len(nb.cells) in self.finished:
            self.finished, self.note = set(), LIE
        if any(output.get("ename") == "CellTimeoutError" for cell in nb.cells for output in _outputs(cell)):
            self.note = self.note or "timed out"
        for index, cell in enumerate(nb.cells):
            if cell.cell_type == "code":
                cell.outputs, ran = plain(_outputs(cell)), index in self.finished
                cell.execution_count = index + 1 if ran else None
                if cell.source.strip() and not ran and not any(one.output_type == "error" for one in cell.outputs):
                    cell.outputs.append(new_output("error", ename="NotRun", evalue=self.note, traceback=[NOT_RUN]))
        nb.metadata = metadata
        return nb, resources

    def on_cell_executed(self, **event: Any) -> None:
        """Remember which cells ended well."""
        super().on_cell_executed(**event)
        if event["execute_reply"]["content"]["status"] == "ok":
            self.finished.add(event["cell_index"])

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """Take an output, unless the submission has printed enough."""
        self.ran = True
        if msg["msg_type"] not in ("status", "execute_input"):
            before = self.printed
            self.printed += len(json.dumps(msg["content"], default=str))
            limit = self.kernel.limits.printed * MIB
            if before < limit <= self.printed:
                cell.outputs.append(new_output("stream", name="stdout", text=CUT))
            if self.printed >= limit or msg["msg_type"].startswith("comm"):
                return None
        return super().process_message(msg, cell, cell_index)


def plain(outputs: Sequence[Mapping[str, Any]]) -> list[NotebookNode]:
    """Outputs as they may be shown: printed text, errors, and of what was displayed the text and the PNG picture."""
    made = []
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream":  # stderr would cost the points of a check, for nbgrader takes it for a failure
            made.append(new_output("stream", name="stdout", text=str(output.get("text", ""))))
        elif kind == "error":
            lines = [str(line) for line in output.get("traceback", [])]
            texts = {name: str(output.get(name, "")) for name in ("ename", "evalue")}
            made.append(new_output("error", **texts, traceback=lines))
        elif kind in ("display_data", "execute_result"):
            data = output.get("data", {})
            kept = {"text/plain": str(data["text/plain"])} if "text/plain" in data else {}
            with suppress(KeyError, TypeError, ValueError):
                picture = base64.b64decode("".join(data["image/png"]).replace("\n", ""), validate=True)
                kept["image/png"] = base64.b64encode(picture).decode()
            if kept:  # never a result, which nbgrader reads as a number of points
                made.append(new_output("display_data", data=kept))
    return made


def _outputs(cell: NotebookNode) -> Sequence[Mapping[str, Any]]:
    return cell.get("outputs", [])
