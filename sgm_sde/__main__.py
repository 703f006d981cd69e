import sys

from sgm_sde.cli import main

if __name__ == "__main__":
    sys.exit(main())
