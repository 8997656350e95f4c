"""The command line of `latentwire_batch.collect_hidden_states`, as a script."""

import sys

from latentwire_batch.collect_hidden_states import main

sys.exit(main(sys.argv[1:]))
