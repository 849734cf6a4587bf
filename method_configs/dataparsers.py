"""Dataparsers that nerfstudio finds by this package's entry points."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig

blender_cn = DataParserSpecification(
    config=BlenderCNDataParserConfig(),
    description="NeRF's Blender scenes at full size or area-averaged, on white, as google/mipnerf reads them.",
)

dtu_cn = DataParserSpecification(
    config=DTUCNDataParserConfig(),
    description="Scans in the layout of IDR and NeuS with masks, in the coordinates of the unit sphere.",
)
