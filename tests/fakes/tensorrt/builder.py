"""TensorRT's builder and runtime. An engine is a JSON file that lists what the builder was given."""

import json
from types import SimpleNamespace
from typing import Any

from tests.fakes.tensorrt.network import Network
from tests.fakes.tensorrt.types import ILogger, NetworkDefinitionCreationFlag, PreviewFeature


class BuilderConfig:
    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.features: set[Any] = set()
        self.profiling_verbosity: Any = None

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def set_preview_feature(self, feature: Any, is_on: bool) -> None:
        (self.features.add if is_on else self.features.discard)(feature)


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.is_native

    def create_network(self, flags: int) -> Network:
        return Network({flag for flag in NetworkDefinitionCreationFlag if flags >> flag & 1})

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_serialized_network_to_stream(self, network: Network, config: BuilderConfig, writer: Any) -> bool:
        assert writer.is_native
        plugins = {layer.name: layer.plugin for layer in network.layers if layer.plugin is not None}
        is_aliased = any(index >= 0 for plugin in plugins.values() for index in plugin.aliases)
        if is_aliased and PreviewFeature.ALIASED_PLUGIN_IO_10_03 not in config.features:
            return False
        content = {
            "flags": sorted(flag.name for flag in network.flags),
            "builder_flags": sorted(config.flags),
            "aliases": {name: plugin.aliases for name, plugin in plugins.items()},
            "kernels": {name: plugin.kernels() for name, plugin in plugins.items()},
        }
        encoded = json.dumps(content).encode()
        return all(writer.write(piece) == len(piece) for piece in (encoded[:100], encoded[100:]))


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.is_native

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": [], "format": kind.name}))
        return SimpleNamespace(content=json.loads(content), create_engine_inspector=lambda: inspector)
