"""Tracing: OpenTelemetry's instrumentation of botocore sees each call in its parent span."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers import NO_WAIT, SMALL_LIMITS

from ecr_parts import LayerUploader
from ecr_parts.testing import LocalECR

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
instrumentation = pytest.importorskip("opentelemetry.instrumentation.botocore")


@pytest.fixture
def exporter() -> Any:
    return in_memory.InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: Any) -> Iterator[Any]:
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.BotocoreInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield provider.get_tracer("test")
    instrumentor.uninstrument()
    provider.shutdown()


def test_every_attempt_has_a_span_in_that_of_the_caller(
    ecr: LocalECR, tracer: Any, exporter: Any
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
    failed = [span for span in spans if span.status.status_code.name == "ERROR"]
    assert [span.name for span in failed] == ["ECR.UploadLayerPart"]
    parents = {span.parent and span.parent.span_id for span in spans}
    assert parents == {build.get_span_context().span_id}


def test_workers_keep_the_span_of_the_caller(ecr: LocalECR, tracer: Any, exporter: Any) -> None:
    uploader = LayerUploader(ecr.client(), "demo", limits=SMALL_LIMITS)
    with tracer.start_as_current_span("build") as build:
        uploader.upload_many([b"a layer", b"a second"])
    *spans, _build = exporter.get_finished_spans()
    assert len(spans) == len(ecr.calls) == 8 - 1  # both are looked up in one call
    parents = {span.parent and span.parent.span_id for span in spans}
    assert parents == {build.get_span_context().span_id}
