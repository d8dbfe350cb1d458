"""What the commands ``upload`` and ``push`` have in common."""

from __future__ import annotations

import argparse
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial

import botocore.session
import tenacity
from botocore.client import BaseClient
from botocore.exceptions import NoRegionError

from ecr_parts._base.redaction import show_error
from ecr_parts._base.threads import Waiter
from ecr_parts._base.validation import to_printable
from ecr_parts._command.in_flight import count_parts
from ecr_parts._command.state_directory import checkpoint_directory
from ecr_parts._command.terminal import Terminal
from ecr_parts._model.layers import UploadedLayer
from ecr_parts._upload.checkpoint import BestEffortPath
from ecr_parts._uploader import LayerUploader, internals_of
from ecr_parts._wire.call import answer_of
from ecr_parts._wire.clients import create_client
from ecr_parts._wire.retry import default_retrying
from ecr_parts.testing.__main__ import print_whole

_ANY_DIGEST = f"sha256:{'0' * 64}"
START_OVER = "Run the command again to start over: "


class Command(ABC):
    """What both commands do: talk to ECR, save progress, and print results."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal
        self._standard_input = -1
        """The descriptor of standard input, once it was taken."""
        self._warned_of_checkpoint = False

    @abstractmethod
    def run(self) -> None:
        """Run the command."""

    @abstractmethod
    def how_to_resume(self, *, started: bool) -> str:
        """Advice on how to resume; empty if nothing was sent.

        ``started``: whether this run has started or continued an upload.
        """

    def _take_standard_input(self) -> None:
        """Keep standard input for the data that is piped in.

        Otherwise, a ``credential_process`` would inherit it and could read some of the data.
        """
        if sys.stdin is None:
            raise ValueError("standard input is closed: pass a file, or pipe the data in")
        if sys.stdin.isatty():
            raise ValueError("standard input is a terminal: pass a file, or pipe the data in")
        self._standard_input = os.dup(sys.stdin.fileno())  # is not inherited
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, sys.stdin.fileno())
        os.close(null)

    def _create_client(self) -> BaseClient:
        options = self._options
        try:
            session = botocore.session.Session(profile=options.profile)
            credentials = session.get_credentials()
            if credentials is not None:
                # Here, in the main thread: this may ask for an MFA code on the terminal.
                credentials.get_frozen_credentials()
        except Exception as error:  # of any type: botocore reads files and runs programs
            raise ValueError(
                f"cannot get AWS credentials: {_describe_error(error)}. Check --profile, and the "
                "credential_process or the login that it uses"
            ) from error
        if credentials is None:
            raise ValueError(
                "there are no AWS credentials: set --profile or AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY"
            )
        try:
            client = create_client(
                session,
                options.repository_uri,
                public=options.public,
                region=options.region,
                endpoint_url=options.endpoint_url,
            )
        except NoRegionError as error:
            raise ValueError("there is no AWS region: set --region or AWS_REGION") from error
        except Exception as error:  # of any type: botocore reads files
            raise ValueError(
                f"cannot create a client: {_describe_error(error)}. Check the AWS configuration, "
                "--profile, --region and --endpoint-url"
            ) from error
        self._terminal.redactor.client = client
        return client

    def _create_uploader(self, client: BaseClient) -> LayerUploader:
        options = self._options
        retrying = default_retrying()
        if options.retry_for is not None:
            longest = min(30, options.retry_for / 4)  # seconds, so that the end is not missed
            retrying = retrying.copy(
                stop=tenacity.stop_after_delay(options.retry_for),
                wait=tenacity.wait_random_exponential(multiplier=0.5, max=longest),
            )
        uploader = LayerUploader(
            client,
            options.repository_uri.text,
            registry_id=options.registry_id,
            part_size=options.part_size,
            retrying=retrying,
            max_bandwidth=options.limit_rate,
        )
        count_parts(client, self._terminal)
        return uploader

    def _look_at_repository(self, uploader: LayerUploader) -> None:
        """Raise an error if there is no such repository, before minutes are spent on reading."""
        self._terminal.begin("asking ECR for the repository")
        self._find_existing(uploader, {_ANY_DIGEST: None})

    def _find_existing(
        self, uploader: LayerUploader, wanted: Mapping[str, int | None]
    ) -> dict[str, int]:
        """The sizes (bytes) of those layers of ``wanted`` that ECR has with the wanted size."""
        repository, _ = internals_of(uploader)
        with Waiter(partial(self._terminal.progress, 0)) as waiter:
            return answer_of(partial(repository.with_waiter(waiter).existing_sizes, wanted))

    def _checkpoint_directory(self, client: BaseClient) -> BestEffortPath | None:
        """The default directory for checkpoints of uploads to this repository."""
        options = self._options
        if options.no_checkpoint:
            return None
        destination = {
            "endpoint": client.meta.endpoint_url,  # also tells the region
            "profile": options.profile or os.environ.get("AWS_PROFILE"),
            "registry": options.registry_id,
            "repository": options.repository,
        }
        try:
            return BestEffortPath(str(checkpoint_directory(destination)), self._warn_of_checkpoint)
        except OSError as error:
            self._warn_of_checkpoint(error)
            return None

    def _warn_of_checkpoint(self, error: Exception) -> None:
        if not self._warned_of_checkpoint:
            self._warned_of_checkpoint = True
            reason = to_printable(describe_os_error(error))
            self._terminal.warn(f"progress is not saved: {reason}")

    def _print(self, digest: str, details: dict[str, object]) -> None:
        line = json.dumps({"digest": digest, **details}) if self._options.json else digest
        try:
            print_whole(f"{line}\n")
        except OSError as error:
            raise OSError(f"ECR has {digest}, but {error}") from error


def describe_os_error(error: Exception) -> str:
    """What an error says, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _describe_error(error: Exception) -> str:
    shown = describe_os_error(error) if isinstance(error, OSError) else show_error(error)
    if shown.startswith("Invalid endpoint"):  # botocore shows the URL, which may have a password
        shown = "the endpoint URL is malformed"
    text = to_printable(shown).strip().rstrip(".")
    return f"{type(error).__name__}: {text}"


def bytes_sent(layers: Iterable[UploadedLayer]) -> int:
    """The bytes that this run has sent, without those that ECR had before."""
    return sum(part.part.size for layer in layers for part in layer.parts)


def layer_details(layer: UploadedLayer) -> dict[str, object]:
    """A layer in the form that ``--json`` prints."""
    return {
        "digest": layer.digest,
        "size": layer.size,
        "existed": layer.existed,
        "parts": len(layer.parts),
        "seconds": round(sum(part.seconds for part in layer.parts), 3),
    }
