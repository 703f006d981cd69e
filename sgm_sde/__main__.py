import sys

from sgm_sde.cli import main

sys.exit(main())
