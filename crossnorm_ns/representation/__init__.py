"""Representation tasks of coordinate networks: images, shapes, tomography, magnetic resonance. No nerfstudio."""
