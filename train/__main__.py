"""`python -m train`: see `train.run`."""

import sys

from train.run import main

if __name__ == "__main__":
    sys.exit(main())
