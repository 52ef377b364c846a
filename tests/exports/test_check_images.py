"""Images for the certificate: they are as odd as their names say."""

from headstart.data.images import decode, read_header
from headstart.exports.check_images import check_images


def test_sizes_modes_and_orientation() -> None:
    files = check_images((160, 128))
    headers = {name: read_header(content) for name, content in files.items()}
    assert len(files) >= 12
    for name, header in headers.items():
        if " x " in name:
            words = name.replace(",", "").split()
            at = words.index("x")
            stored = (int(words[at - 1]), int(words[at + 1]))
            turned = header.exif_orientation > 4
            assert (header.width, header.height) == (stored[::-1] if turned else stored), name
    assert {header.mode for header in headers.values()} >= {"L", "RGBA", "P", "RGB", "I;16"}
    assert headers["turned by EXIF 400 x 300"].exif_orientation == 6
    assert decode(files["turned by EXIF 400 x 300"]).shape == (400, 300, 3)
    assert decode(files["size of the input, 128 x 160"]).shape == (160, 128, 3)
