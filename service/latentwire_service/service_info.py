"""The answer of `/info`: a pure function of the loaded backend and the settings."""

from __future__ import annotations

from dataclasses import asdict

from latentwire.protocol import BridgeInfo, BridgePrompt, BridgeSource, InfoResponse, Limits
from latentwire_service.compression.catalog import CompressorCatalog
from latentwire_service.engine.backend import BackendInfo
from latentwire_service.engine.seams.bridge import Bridge
from latentwire_service.settings import Settings

# A body without latents: texts, and their JSON.
TEXT_BODY_BYTES = 1_048_576


def body_limit(backend: BackendInfo) -> int:
    """Return the most bytes of a request body with a latent that fills a slot.

    base64 takes four bytes for three, and a value has four bytes.
    """
    values = backend.max_model_len * backend.hidden_size
    return TEXT_BODY_BYTES + -(-values * 16 // 3)


def service_info(
    backend: BackendInfo, settings: Settings, version: str, compressors: CompressorCatalog
) -> InfoResponse:
    """Describe a service.

    Args:
        backend: the loaded model.
        settings: of the service; only limits are shown.
        version: of the service.
        compressors: those that requests may name.
    """
    return InfoResponse(
        model=backend.model_id,
        revision=backend.revision,
        hidden_size=backend.hidden_size,
        vocab_size=backend.vocab_size,
        dtype=backend.dtype,
        device=backend.device,
        limits=Limits(
            max_slots=backend.max_slots,
            max_model_len=backend.max_model_len,
            max_queue=settings.max_queue,
            max_body_bytes=body_limit(backend)
            if settings.max_body_bytes == "auto"
            else settings.max_body_bytes,
            max_new_tokens=settings.max_new_tokens_limit,
            request_timeout_s=settings.request_timeout,
        ),
        version=version,
        engine=backend.engine,
        engine_version=backend.engine_version,
        compressors=compressors.names,
        compressor_info=list(compressors.infos),
        capabilities=sorted(backend.capabilities),
        refusals=dict(backend.refusals),
        generation_defaults=dict(backend.generation_defaults),
        bridges=[_bridge_info(bridge) for bridge in backend.bridges],
    )


def _bridge_info(bridge: Bridge) -> BridgeInfo:
    prompt = bridge.prompt
    return BridgeInfo(
        name=bridge.name,
        kind=bridge.kind,
        source=BridgeSource(**asdict(bridge.source)),
        content_hash=bridge.content_hash,
        is_step_bridge=bridge.is_row_wise,
        prompt=None if prompt is None else BridgePrompt(**asdict(prompt)),
    )
