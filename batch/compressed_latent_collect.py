"""The command line of `latentwire_batch.compressed_latent_collect`, as a script."""

import sys

from latentwire_batch.compressed_latent_collect import main

sys.exit(main(sys.argv[1:]))
