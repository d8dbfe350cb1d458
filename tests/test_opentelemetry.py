"""Tracing: OpenTelemetry's instrumentation of botocore sees each call in its parent span."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import NO_WAIT, SMALL_LIMITS

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

pytest.importorskip("opentelemetry.sdk")
instrumentation = pytest.importorskip("opentelemetry.instrumentation.botocore")

from opentelemetry.sdk.trace import TracerProvider  # noqa: E402  (may not be installed)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import StatusCode, Tracer  # noqa: E402


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[Tracer]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.BotocoreInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield provider.get_tracer("test")
    instrumentor.uninstrument()
    provider.shutdown()


def test_every_attempt_has_a_span_in_that_of_the_caller(
    ecr: LocalECR, tracer: Tracer, exporter: InMemorySpanExporter
) -> None:
    ecr.fail("UploadLayerPart", "throttled", call=2)
    # A part that is sent ahead, and withdrawn because the one before fails, has a span too.
    uploader = LayerUploader(
        ecr.client(), "demo", limits=SMALL_LIMITS, retrying=NO_WAIT, overlap=False
    )
    with tracer.start_as_current_span("build") as build:
        uploader.upload(b"three parts of 8 bytes")
    *spans, _build = exporter.get_finished_spans()
    names = [span.name.removeprefix("ECR.") for span in spans]
    assert sorted(names) == sorted(call.operation for call in ecr.calls)
    assert names.count("UploadLayerPart") == 4
    failed = [span for span in spans if span.status.status_code is StatusCode.ERROR]
    assert [span.name for span in failed] == ["ECR.UploadLayerPart"]
    parents = {span.parent and span.parent.span_id for span in spans}
    assert parents == {build.get_span_context().span_id}


def test_workers_keep_the_span_of_the_caller(
    ecr: LocalECR, tracer: Tracer, exporter: InMemorySpanExporter
) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
    with tracer.start_as_current_span("build") as build:
        uploader.upload_many([b"a layer", b"a second"])
    *spans, _build = exporter.get_finished_spans()
    assert len(spans) == len(ecr.calls) == 8 - 1  # both are looked up in one call
    parents = {span.parent and span.parent.span_id for span in spans}
    assert parents == {build.get_span_context().span_id}
