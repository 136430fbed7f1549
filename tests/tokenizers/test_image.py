"""Patches and their places, frames, and what is no image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generalist.tokenizers.image import moved, patch_intervals, patchify, to_frame, to_rgb


def test_patch_intervals_of_gatos_example():
    """Papers A3: 4 rows and 5 columns of patches."""
    rows, columns = [0, 32, 64, 96, 128], [0, 26, 51, 77, 102, 128]
    expected = [(rows[r], rows[r + 1], columns[c], columns[c + 1]) for r in range(4) for c in range(5)]
    intervals = patch_intervals(4, 5)
    assert intervals.dtype == np.int32
    assert [tuple(interval) for interval in intervals.tolist()] == expected
    assert patchify(np.zeros((64, 80, 3), np.uint8))[1].tolist() == intervals.tolist()


def test_patches_stand_in_raster_order():
    image = np.arange(32 * 48, dtype=np.uint32).reshape(32, 48, 1).astype(np.uint8)
    patches, _ = patchify(image)
    assert patches.shape == (6, 16, 16, 3)
    for index, (row, column) in enumerate((r, c) for r in (0, 16) for c in (0, 16, 32)):
        np.testing.assert_array_equal(patches[index, :, :, 1], image[row : row + 16, column : column + 16, 0])


def test_sizes_are_filled_up_with_black():
    patches, intervals = patchify(np.full((17, 30), 255, np.uint8))
    assert patches.shape == (4, 16, 16, 3)
    assert intervals.tolist() == [[0, 64, 0, 64], [0, 64, 64, 128], [64, 128, 0, 64], [64, 128, 64, 128]]
    assert (patches[1, :, :14] == 255).all() and (patches[1, :, 14:] == 0).all()
    assert (patches[2, 0] == 255).all() and (patches[2, 1:] == 0).all()


def test_patch_places_are_the_same_every_time():
    """Trap 7: what evaluation reads is a function of the image's size alone."""
    rng = np.random.default_rng(0)
    first, second = (patchify(rng.integers(0, 255, (84, 84, 3)).astype(np.uint8))[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (36, 4) and first.min() == 0 and first.max() == 128


def test_transparency_is_laid_on_white():
    image = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    assert to_rgb(image).tolist() == [[[255, 255, 255], [200, 100, 0], [244, 224, 204]]]


@pytest.mark.parametrize("shape", [(84, 84, 3), (20, 50, 3), (7, 7), (100, 84, 1), (3, 200, 4)])
def test_frames_have_one_size(shape):
    frame = to_frame(np.full(shape, 255, np.uint8), 84)
    assert frame.shape == (84, 84, 3) and frame.dtype == np.uint8
    assert (frame == 255).all()


def test_a_frame_of_the_right_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 255, (84, 84, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_frame(image, 84), image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros((8,), np.uint8)],
)
def test_what_is_no_image(image):
    with pytest.raises(ValueError, match="an image must be uint8"):
        patchify(image)
    with pytest.raises(ValueError, match="an image must be uint8"):
        to_frame(image, 16)


@given(st.integers(-9, 9), st.integers(-9, 9))
def test_moved_images_are_cut_out_of_endless_edges(down, right):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    shifted = moved(images, down, right)
    for row in range(5):
        for column in range(7):
            source = images[:, np.clip(row - down, 0, 4), np.clip(column - right, 0, 6)]
            np.testing.assert_array_equal(shifted[:, row, column], source)
