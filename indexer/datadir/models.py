"""Models of an archive: which one is in force, and the copies that the data folder keeps."""

from pathlib import Path

from engine.errors import StoreError
from engine.files import write_atomically
from engine.model.manifest import SHIPPED, checkpoint_files, read_manifest
from engine.settings import Settings
from indexer.datadir.layout import DataDir, remove_folder

__all__ = ["keep_model", "model_directory", "remove_models"]


def model_directory(settings: Settings) -> Path:
    """The checkpoint folder to use: the one that the settings name, else the one that came into
    force with the index, else the one shipped with the package."""
    if settings.model is not None:
        return settings.model
    return DataDir(settings.data_dir).model(settings) or SHIPPED


def keep_model(data_dir: DataDir, directory: Path) -> str:
    """Copies a model into the data folder, so that it is kept as long as its index; returns its
    path relative to the data folder. Files of an earlier copy, such as another calibration, are
    replaced.

    Raises:
        ModelError: there is no model. StoreError: it cannot be copied.
    """
    fingerprint = read_manifest(directory).fingerprint
    target = data_dir.models / fingerprint
    if target.resolve() != directory.resolve():
        try:
            target.mkdir(parents=True, exist_ok=True)
            files = checkpoint_files(directory)
            for path in target.iterdir():
                if path.name not in {one.name for one in files}:
                    path.unlink()
            for path in files:
                write_atomically(target / path.name, path.read_bytes())
        except OSError as error:
            raise StoreError(
                f"the model cannot be copied to {target} ({error.strerror}); see to room and "
                "permissions of the data folder"
            ) from None
    return str(target.relative_to(data_dir.root))


def remove_models(data_dir: DataDir) -> list[str]:
    """Removes the copies of models that neither an index in force nor its previous one needs;
    returns their fingerprints."""
    noted = [data_dir.in_force(served=served) for served in (False, True)]
    needed = {one.model for found in noted if found for one in (found, found.previous) if one}
    there = sorted(data_dir.models.iterdir()) if data_dir.models.is_dir() else []
    gone = [path for path in there if str(path.relative_to(data_dir.root)) not in needed]
    for path in gone:
        remove_folder(path)
    return [path.name for path in gone]
