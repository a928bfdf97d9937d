"""A loaded model without its output layer."""

from transformers import PreTrainedModel


def backbone(model: PreTrainedModel) -> PreTrainedModel:
    """The module with embedding, layers and final norm.

    It is transformers' `base_model`, except where a class names one that it has inside a wrapper only: without the
    wrapper `base_model` is the model itself."""
    if model.base_model is not model:
        found: PreTrainedModel = model.base_model
        return found
    (found,) = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return found
