"""Lightning callbacks; they know a task only by the Protocol they declare."""
