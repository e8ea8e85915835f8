from .data.problem import Problem as Problem
from .geometry.directions import Plane as Plane
from .geometry.directions import line_between as line_between
from .geometry.directions import random_plane as random_plane
from .geometry.grid import Grid as Grid
from .health.diagnose import diagnose_network_health as diagnose_network_health
from .io.read import read as read
from .io.surface import Surface as Surface
from .landscape.loss import losses as losses
from .landscape.run_survey import survey as survey
from .plotting.figures import draw as draw

__version__: str
