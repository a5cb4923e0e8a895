"""The shell's door to tfrobust/cli.py: `tfrobust --help` answers before TensorFlow is loaded.

Importing `tfrobust.cli` would first run the package, which loads Keras and TensorFlow; this finds
the file without running the package. The rooms are imported by the command that needs them.
"""

import importlib.util
import pathlib


def main(argv=None):
    package = importlib.util.find_spec("tfrobust")
    path = pathlib.Path(package.submodule_search_locations[0]) / "cli.py"
    spec = importlib.util.spec_from_file_location("tfrobust_cli_file", path)
    cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli)
    return cli.main(argv)
