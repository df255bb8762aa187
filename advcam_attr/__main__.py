"""``python -m advcam_attr``: the same as ``advcam``."""

from advcam_attr.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
