"""Which files are opened while every route is asked: those of the log folder and of the tab, whatever names say."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import asking
import pytest
import sample_recording as sample
from werkzeug.test import Client

from dgm_tb.plugin import assets
from dgm_tb.records import PLUGIN_NAME, Record

NAMES = ["../../secret", "/etc/passwd", "..\\..\\secret", "secret/../../secret", "a/../../secret", "file:///etc/passwd"]


def write_logs(folder: Path) -> Path:
    """A log folder beside a secret: an ordinary run, one behind a link, and one in which every name is a path."""
    secret = folder / "secret"
    sample.write(secret, sample.all_records())
    (folder / "elsewhere").mkdir()
    sample.write(folder / "elsewhere" / "linked", sample.all_records())
    logdir = folder / "logs"
    sample.write(logdir / "run", sample.all_records())
    (logdir / "linked").symlink_to(folder / "elsewhere" / "linked")
    (logdir / "loop").symlink_to(logdir)
    sample.write(logdir / "hostile", named(sample.all_records(), str(secret)))
    return logdir


def named(records: Any, secret: str) -> list[Record]:
    """Records in which every text is a path out of the log folder."""
    paths = [*NAMES, secret]

    def renamed(value: Any, number: int) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item, number + i) for i, (key, item) in enumerate(value.items())}
        if isinstance(value, list):
            return [renamed(item, number + i) for i, item in enumerate(value)]
        return paths[number % len(paths)] if isinstance(value, str) else value

    kept = {"quantity", "statistic", "statistics", "aggregates", "direction", "samples", "columns"}
    return [
        replace(record, body={key: item if key in kept else renamed(item, n) for key, item in record.body.items()})
        for n, record in enumerate(records)
    ]


def ask_with_paths(client: Client, logdir: Path) -> None:
    """Every route with names that are paths, in every argument."""
    paths = [
        *NAMES,
        str(logdir.parent / "secret"),
        "loop/../../secret",
        f"hostile/plugins/{PLUGIN_NAME}",
        "linked/../..",
    ]
    for run in ("run", "hostile", "linked", *paths):
        asking.ask(client, "run", [("run", run)])
        for route, arguments in asking.ARGUMENTS.items():
            for path in paths:
                asking.ask(client, route, [("run", run), *((name, path) for name in arguments if name != "run")])
    for path in paths:
        for place in ("static/", "static/x/"):
            for text in (path, path.replace("/", "%2f"), path.replace(".", "%2e"), path.replace("\\", "%5c")):
                client.get(f"{asking.BASE}{place}{text.removeprefix('/')}")


def opened_files(logdir: Path) -> set[str]:
    """Paths of what is opened or listed meanwhile, in this process."""
    asking.ask_everything(logdir / "run", random.Random(0))  # whatever is imported or read once
    found: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
            found.add(os.fsdecode(arguments[0]))

    client = asking.make_client(logdir)
    sys.addaudithook(note)
    ask_with_paths(client, logdir)
    return set(found)


def test_nothing_outside_the_log_folder_is_opened_but_behind_links(tmp_path: Path) -> None:
    logdir = write_logs(tmp_path)
    ended = subprocess.run([sys.executable, __file__, str(logdir)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    allowed = [logdir, assets.STATIC]
    outside = [
        path for path in found if not any(Path(os.path.abspath(path)).is_relative_to(place) for place in allowed)
    ]
    assert outside == []
    targets = [*(place.resolve() for place in allowed), (tmp_path / "elsewhere" / "linked").resolve()]
    assert not [path for path in found if not any(Path(path).resolve().is_relative_to(place) for place in targets)]
    segments = {str(Path(path).relative_to(logdir)) for path in found if path.endswith("000000.dgm")}
    place = f"plugins/{PLUGIN_NAME}/{sample.NAME}/000000.dgm"
    assert segments == {f"{run}/{place}" for run in ("run", "hostile", "linked")}, "the hook sees what is opened"


@pytest.mark.parametrize(
    "name", ["../outside.js", "..%2foutside.js", "%2e%2e/outside.js", "..\\outside.js", "..%5coutside.js"]
)
def test_a_file_beside_the_tabs_own_is_not_served(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.js").write_text("// own\nrender()")
    (tmp_path / "outside.js").write_text("outside")
    monkeypatch.setattr(assets, "STATIC", static)
    client = asking.make_client(tmp_path)
    assert client.get(f"{asking.BASE}static/x/index.js").status_code == 200
    for place in ("static/", "static/x/", "static/x/y/../", f"static//{tmp_path}/"):
        answer = client.get(f"{asking.BASE}{place}{name}")
        assert answer.status_code in (404, 308)
        assert b"outside" not in answer.data.replace(b"outside.js", b"")


def test_a_link_put_beside_the_tabs_files_later_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.js").write_text("render()")
    (tmp_path / "outside.js").write_text("outside")
    monkeypatch.setattr(assets, "STATIC", static)
    client = asking.make_client(tmp_path)
    (static / "planted.js").symlink_to(tmp_path / "outside.js")
    assert client.get(f"{asking.BASE}static/x/planted.js").status_code == 404


if __name__ == "__main__":
    print(json.dumps(sorted(opened_files(Path(sys.argv[1])))))
