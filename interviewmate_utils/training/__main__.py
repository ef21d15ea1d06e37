"""One of the processes that `train` starts for itself: python -m interviewmate_utils.training PARAMETERS ROOT."""

import sys
from pathlib import Path

from .. import config
from ..kernel import end_with_parent
from . import train_here

end_with_parent()
config.ROOT = Path(sys.argv[2])
train_here(config.TrainLora.model_validate_json(sys.argv[1]))
