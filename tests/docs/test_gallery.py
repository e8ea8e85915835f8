"""The gallery is what its script makes: the page, its commands, its pictures."""

import importlib.util
import shlex
from pathlib import Path

import pytest
from PIL import Image

from lossmap.cli.draw import COMMAND

SCRIPT = Path(__file__).parents[2] / "docs" / "pictures" / "make_gallery.py"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("make_gallery", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_that_the_script_writes_with_all_its_pictures(gallery):
    assert gallery.PAGE.read_text(encoding="utf8") == gallery.page()
    made = {path.name for path in gallery.FOLDER.iterdir()}
    assert made == {gallery.output_of(command) for _, _, command in gallery.PICTURES}


def test_each_picture_carries_the_caption_of_what_its_command_draws(gallery):
    for _, _, command in gallery.PICTURES:
        settings = COMMAND.parse(shlex.split(command)[2:])
        image = Image.open(gallery.FOLDER / settings.picture.output[0])
        assert len(image.text["Description"]) > 10 and image.width > 300, command
