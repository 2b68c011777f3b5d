"""Check that a wheel holds every module that git tracks, and nothing else."""

import subprocess
import sys
import zipfile

FOLDERS = {"ir": "refquant/ir", "kernels": "refquant/kernels", "importers": "refquant/importers"}


def main(wheel: str) -> int:
    """Compare the lists; return the exit code."""
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    expected = set()
    for path in tracked.stdout.split():
        folder, _, rest = path.partition("/")
        if path.startswith("refquant/") and path not in FOLDERS.values():
            expected.add(path)
        elif folder in FOLDERS:
            expected.add(f"{FOLDERS[folder]}/{rest}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("refquant/")}
    for name in sorted(expected ^ found):
        print(f"{'missing from' if name in expected else 'not tracked but in'} the wheel: {name}")
    print(f"{wheel}: {len(found)} files")
    return 1 if expected ^ found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
