"""Images written from strips: the same file, refusals before work, old files that stay."""

import pytest
import torch
from PIL import Image

from ir_peft.data.images import FORMATS, read_image, write_image, write_strips


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("suffix", FORMATS)
def test_strips_make_the_file_of_the_whole(tmp_path, suffix):
    x = image(3, 50, 20)
    write_image(tmp_path / f"whole{suffix}", x)
    write_strips(tmp_path / f"strips{suffix}", x.split([7, 1, 30, 12], dim=1), 50, 20)
    whole, strips = (tmp_path / f"{name}{suffix}" for name in ("whole", "strips"))
    assert whole.read_bytes() == strips.read_bytes()
    if FORMATS[suffix]["format"] != "JPEG":
        assert torch.equal(read_image(strips), (x * 255).round() / 255)


def test_an_image_of_more_than_one_strip_keeps_its_rows(tmp_path):
    x = (torch.arange(600) % 256 / 255).view(1, 600, 1).expand(3, 600, 2)
    write_image(tmp_path / "x.png", x)
    assert torch.equal(read_image(tmp_path / "x.png"), x)


@pytest.mark.parametrize("strips, message", [
    ([torch.zeros(3, 4, 5)], "4 rows came of 8"),
    ([torch.zeros(3, 4, 5)] * 3, r"a strip \(3, 4, 5\) from row 8 on does not fit .*\(3, 8, 5\)"),
    ([torch.zeros(3, 4, 6)], r"a strip \(3, 4, 6\) from row 0 on"),
    ([torch.zeros(1, 4, 5)], r"a strip \(1, 4, 5\)"),
    ([torch.zeros(3, 5)], r"a strip \(3, 5\)"),
    ([torch.zeros(3, 4, 5), torch.full((3, 4, 5), torch.inf)], "NaN or infinite"),
])  # fmt: skip
def test_strips_that_are_wrong_leave_the_old_file(tmp_path, strips, message):
    path = tmp_path / "x.png"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        write_strips(path, strips, 8, 5)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError, match="expected floating point in .*got torch.uint8"):
        write_strips(path, [torch.zeros(3, 8, 5, dtype=torch.uint8)], 8, 5)


def never():
    yield pytest.fail("a strip was asked for")


@pytest.mark.parametrize("name, size, message", [
    ("x.gif", (4, 4), "unknown image suffix"),
    ("x.webp", (4, 16384), r"16384 x 4 pixels, WEBP has at most 16383 a side"),
    ("x.jpg", (65501, 4), r"4 x 65501 pixels, JPEG has at most 65500 a side"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused_before_the_first_strip(tmp_path, name, size, message):
    with pytest.raises(ValueError, match=message):
        write_strips(tmp_path / name, never(), *size)
    with pytest.raises(OSError, match="file"):
        (tmp_path / "file").write_text("")
        write_strips(tmp_path / "file" / "x.png", never(), 4, 4)


def test_the_sides_are_what_the_formats_take(tmp_path):
    write_strips(tmp_path / "x.webp", [torch.zeros(3, 1, 16383)], 1, 16383)
    write_strips(tmp_path / "x.jpg", [torch.zeros(3, 1, 65500)], 1, 65500)
    for suffix, side in ((".webp", 16383), (".jpg", 65500)):
        with Image.open(tmp_path / f"x{suffix}") as written:
            assert written.size == (side, 1)
