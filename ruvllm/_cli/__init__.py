"""The commands of ``ruvllm``, a file per group; ``ruvllm.cli`` puts them together.

Nothing here is public and nothing here decides: a command turns words into the arguments of the
Python API, and what comes back into text.  What a command needs is imported when it runs."""
