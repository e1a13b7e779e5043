"""``python -m bayestune.cli`` is ``bayestune``."""

from bayestune.cli.app import main

if __name__ == "__main__":
    main()
