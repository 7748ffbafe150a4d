"""What everyone writes to fill an LMDB with images: the peer of the import benchmark. Runs in a process of its own."""

import sys
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image


def main(root: str, out: str, side: int) -> None:
    environment = lmdb.open(out, map_size=1 << 40)
    number = 0
    with environment.begin(write=True) as transaction:
        for label, folder in enumerate(sorted(Path(root).iterdir())):
            for file in sorted(folder.iterdir()):
                image = Image.open(file).convert("RGB").resize((side, side))
                transaction.put(b"%08d" % number, bytes([label]) + np.asarray(image).tobytes())
                number += 1
    environment.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
