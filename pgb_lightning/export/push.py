"""Push an exported folder to the Hub, after the Hub has validated the metadata of its card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

#: Files of ``pgb prune`` that are not uploaded with the model: checkpoints, logs and the report.
LEFT_OUT = ("run/*", "report/*")


def check_repo_id(repo_id: str) -> None:
    """Check that the name of a repository is valid and that there is a token, without contacting the Hub.

    Args:
        repo_id: The name, such as ``"me/my-model"``.

    Raises:
        ValueError: If the name is not valid, the user is not logged in, or the Hub may not be contacted.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub={repo_id!r} is not a name on the Hub, such as 'me/my-model': {error}") from None
    if get_token() is None:
        raise ValueError(
            f"push_to_hub={repo_id!r} needs a token of the Hub. Log in with `hf auth login`, or set HF_TOKEN."
        )
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"push_to_hub={repo_id!r} needs the Hub, but HF_HUB_OFFLINE is set. Unset it, or omit push_to_hub."
        )


def push_to_hub(folder: str | Path, repo_id: str, private: bool | None = None) -> str:
    """Upload an exported folder as a model repository. The Hub validates the metadata of its card first.

    Args:
        folder: A folder that an export of this package wrote.
        repo_id: The name on the Hub, such as ``"me/my-model"``. The repository is created if it does not exist.
        private: Whether a new repository is private; by default according to the user's settings on the Hub.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: If the folder has no card, ``repo_id`` is not valid, the user is not logged in, or the Hub cannot be
            reached or refuses the metadata or the upload. The folder is unchanged.

    Example:
        >>> push_to_hub("out/", "me/my-model")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi, ModelCard

    check_repo_id(repo_id)
    card = Path(folder) / "README.md"
    if not card.is_file():
        raise ValueError(
            f"folder={str(folder)!r} has no README.md. Pass a folder that an export of this package wrote."
        )
    with _explained(folder, repo_id):
        ModelCard.load(card).validate()
        api = HfApi()
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Upload a pruned model",
            ignore_patterns=list(LEFT_OUT),
        )
    return str(commit.commit_url)


@contextmanager
def _explained(folder: str | Path, repo_id: str) -> Iterator[None]:
    """Convert the errors of the Hub and of the network, which have no common class, to an error with a remedy."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"push_to_hub={repo_id!r} failed, but the folder {str(folder)!r} is complete. Upload it with "
            f"pgb_lightning.export.push_to_hub({str(folder)!r}, {repo_id!r}). The error was: "
            f"{shorten(f'{type(error).__name__}: {error}', 500)}"
        ) from error
