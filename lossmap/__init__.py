"""lossmap: survey the loss landscape of a trained network, and read its curvature.

`import lossmap` loads nothing heavy: a picture can be drawn from a result file on a machine without torch. The public
names are listed, with their types, in `__init__.pyi`, and are imported when first used (SPEC 1, lazy_loader).
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # type: ignore[assignment]
