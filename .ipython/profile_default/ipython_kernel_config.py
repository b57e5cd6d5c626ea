# The suite's kernels start from here and from nothing of the user's own: no start-up files, no chatter on stderr.
c = get_config()  # noqa: F821
c.IPKernelApp.log_level = 40
