"""The room for data: image sets by name, their augmentation, and where files live on this machine.

Importing it loads no torch; that happens when `load`, `ImageData`, `augment` or `normalize` is first touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["augmentation", "catalogue", "embed", "errors", "files", "folders", "image_data", "paths"],
    submod_attrs={
        "augmentation": ["augment", "normalize"],
        "catalogue": ["load"],
        "errors": ["InputError", "exit_on_input_error"],
        "image_data": ["ImageData"],
    },
)
