"""``python -m fastmine``, and with it ``torchrun -m fastmine``: the command."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
