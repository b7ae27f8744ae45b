"""``python -m ruvllm``: the command ``ruvllm``."""

import sys

from ruvllm.cli import main

sys.exit(main())
