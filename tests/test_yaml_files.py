import math

import pytest
import yaml

from hps_lightning.errors import UserError
from hps_lightning.yaml_files import DEEPEST, LARGEST_FILE, parse_yaml, read_yaml
from tests.hostile import CONFIGS


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_our_configs_are_read_as_yaml_does(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        ("1000", 1000),
        (".inf", math.inf),
        ("2024-01-01", "2024-01-01"),
        ("._", "._"),
        ("=", "="),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("", None),
    ],
)
def test_plain_values(text, value):
    assert parse_yaml(text, "x") == value


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3: the key 'a' stands there twice"),
        ("a:\n  - {b: 1, c: 2, b: 1}\n", r"line 2: the key 'b' stands there twice"),
        ("a:\n\tb: 1\n", r"line 2, column 1: this is not valid YAML: .*spaces, not with tabs"),
        ("a: [1", "not valid YAML"),
        ("a: &x [*x]\n", r"line 1: \*x stands within itself"),
        ("a: &x {b: {c: *x}}\n", r"\*x stands within itself"),
        ("a: *x\n", "undefined alias"),
        (BOMB, "more than 100,000 values"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), f"more than {DEEPEST} levels"),
        ("[" * 100_000, "levels|nesting"),
        ("a: !!python/object/apply:os.system [true]\n", "the tag .*os.system' has no meaning here"),
        ("a: !!binary x\n", "the tag"),
        ("a: " + "9" * 5000, "a number in it cannot be read"),
        ("--- a\n--- b\n", "another document"),
        (b"a: gr\xf6\xdfe\n", r"no text in UTF-8: the byte 0xf6 in line 1"),
        ("a: 1".encode("utf-16"), "no text in UTF-8"),
        (b"a: \x00", "not valid YAML"),
        (b"#" * (LARGEST_FILE + 1), r"more than 1,000,000 bytes"),
    ],
)
def test_what_no_config_needs_is_one_line_at_once(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)
