"""Everything `slm_core` raises on purpose.

SlmCoreError
├── CheckpointError      a checkpoint directory that is missing, incomplete or of another shape
├── DeviceLost           the device has failed: nothing will run on it before this process ends
├── EngineError          the model computes no numbers for this prompt
├── InvalidParams        a sampling parameter out of range; also a ValueError
├── OutOfMemory          a step found no memory; a smaller one may
└── PromptTooLong        prompt and max_tokens do not fit the context; also a ValueError
"""


class SlmCoreError(Exception):
    """Root of this package's errors."""


class CheckpointError(SlmCoreError):
    pass


class DeviceLost(SlmCoreError):
    pass


class OutOfMemory(SlmCoreError):
    pass


class EngineError(SlmCoreError):
    pass


class InvalidParams(SlmCoreError, ValueError):
    pass


class PromptTooLong(SlmCoreError, ValueError):
    def __init__(self, prompt_tokens: int, max_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length
        super().__init__(
            f"prompt of {prompt_tokens} tokens and max_tokens {max_tokens} make "
            f"{prompt_tokens + max_tokens}, but the context holds {context_length}"
        )
