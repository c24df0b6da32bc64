"""`python -m rankloop`, the same program as `rankloop`."""

from rankloop.cli import main

if __name__ == "__main__":
    main()
