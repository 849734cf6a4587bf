"""The entry for nerfstudio's external_methods.py, from the comment on."""

from nerfstudio.configs.external_methods import ExternalMethod, external_methods

# Cross Normalization
external_methods.append(
    ExternalMethod(
        """[bold yellow]Cross Normalization[/bold yellow]
For more information visit: https://docs.nerf.studio/nerfology/methods/crossnorm.html

To enable Cross Normalization, you must install it first by running:
  [grey]pip install crossnorm-ns[/grey]""",
        configurations=[
            ("mipnerf-cn", "mip-NeRF as published, with Cross Normalization"),
            ("mipnerf-ref", "mip-NeRF as published, the reference for mipnerf-cn"),
            ("mipnerf-cn-tiny", "mipnerf-cn made small, for CPUs"),
            ("neus-cn", "NeuS as published, with Cross Normalization"),
            ("neus-ref", "NeuS as published, the reference for neus-cn"),
            ("neus-cn-tiny", "neus-cn made small, for CPUs"),
            ("volsdf-cn", "VolSDF as published, with Cross Normalization"),
            ("volsdf-ref", "VolSDF as published, the reference for volsdf-cn"),
            ("volsdf-cn-tiny", "volsdf-cn made small, for CPUs"),
            ("vanilla-nerf-cn", "Vanilla NeRF with Cross Normalization"),
            ("nerfacto-cn", "nerfacto in plain PyTorch with Cross Normalization"),
        ],
        pip_package="crossnorm-ns",
    )
)
