"""The tasks of the paper's section 5: an image, a shape, a slice from projections, a volume from Fourier samples."""

from crossnorm_ns.representation.tasks.base import Batch, Task
from crossnorm_ns.representation.tasks.ct import CTTask
from crossnorm_ns.representation.tasks.image import ImageTask
from crossnorm_ns.representation.tasks.mri import MRITask
from crossnorm_ns.representation.tasks.shape import ShapeTask

__all__ = ["Batch", "CTTask", "ImageTask", "MRITask", "ShapeTask", "Task"]
