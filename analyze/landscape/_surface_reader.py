"""Read the surface in an HDF5 file, run as a program of its own: `python -I _surface_reader.py FILE`.

Files of the format before HDF5 1.8 have no checksums, and a damaged one can crash the library: it crashes here then,
not in the process that asked. Nothing outside of the file is followed. Writes an .npz to stdout.
"""

import io
import sys

import h5py
import numpy as np

NAMES = ("xcoordinates", "ycoordinates", "train_loss", "train_acc", "test_loss", "test_acc")
LARGEST = 10_000_000


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of these names that the file has."""
    found = {}
    with h5py.File(path, "r", locking=False) as file:
        for name in NAMES:
            link = file.get(name, getlink=True)
            if link is None:
                continue
            data = file[name] if isinstance(link, h5py.HardLink) else None
            if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
                raise ValueError(f"{name} is not an array inside the file")
            if data.dtype.kind not in "fiu" or data.size > LARGEST or not 1 <= data.ndim <= 2:
                raise ValueError(f"{name} is not a grid of numbers")
            found[name] = data[()].astype(np.float64)
    return found


if __name__ == "__main__":
    try:
        arrays = read(sys.argv[1])
    except Exception as error:
        sys.exit((str(error).splitlines() or [type(error).__name__])[0][:200])
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    sys.stdout.buffer.write(content.getvalue())
