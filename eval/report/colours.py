"""One colour per name: a source, a suite or an agent has the same colour on every page and in every chart."""

import hashlib

COLOURS = 20
_SALT = 176471  # chosen so that no two of the sources that come with the package share a colour, and suites lie apart


def colour_of(name: str) -> str:
    """The style's class for a name, `c0` to `c19`. It depends on the name alone, not on what else is drawn."""
    # Not Python's hash, which differs from process to process.
    digest = hashlib.sha256(f"{_SALT}{name}".encode()).digest()
    return f"c{int.from_bytes(digest[:4], 'big') % COLOURS}"


def palette(*, dark: bool) -> str:
    """CSS variables `--c0` to `--c19`: hues around the colour circle."""
    # Neighbouring hues differ in lightness as well; on a dark page all are lighter.
    lightness = (72, 60) if dark else (34, 48)
    hues = ((number * 360 // COLOURS, lightness[number % 2]) for number in range(COLOURS))
    return " ".join(f"--c{number}: hsl({hue} 62% {light}%);" for number, (hue, light) in enumerate(hues))


CLASSES = "".join(f".c{number} {{ --c: var(--c{number}) }}\n" for number in range(COLOURS))
