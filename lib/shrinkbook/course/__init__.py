"""The course: seven assignments in nbgrader's format, released, graded in a sandbox, checked against the library."""
