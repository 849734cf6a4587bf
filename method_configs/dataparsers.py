"""Dataparsers that nerfstudio finds by this package's entry points."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig

blender_cn = DataParserSpecification(
    config=BlenderCNDataParserConfig(),
    description="NeRF's Blender scenes at full size or area-averaged, on white, as google/mipnerf reads them.",
)
