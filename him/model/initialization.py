"""Initialization: the weights that training starts from."""

from torch import nn

from him.model.embeddings import LexicalEmbedding
from him.model.encoder import EncoderBlock


def initialize(model: nn.Module) -> None:
    """Draws all weights of a model anew from torch's global generator.

    | what | how |
    |---|---|
    | Embedding weights | normal, mean 0, deviation 0.02 (Devlin et al. 2018, arXiv:1810.04805) |
    | ... of the lexical inputs | the same with 0.1: what words tell outweighs which words they are |
    | Linear weights | normal, mean 0, deviation 1 / sqrt(3 * inputs), which is PyTorch's own |
    | ... of the output layer, which is the model's own child | normal, mean 0, deviation 0.02: it starts undecided |
    | last Linear of each residual branch | the same, divided by sqrt(2 * layers) (Radford et al. 2019, section 2.3) |
    | depthwise convolution | normal, mean 0, deviation 1 / sqrt(width), divided by sqrt(2 * layers) |
    | biases | 0 |
    | LayerNorm | 1 and 0 |

    On SQuAD, at 128 dimensions and 3 epochs, 0.02 for all of them, as in BERT, cost 2.5 F1.
    """
    num_encoder_layers = sum(isinstance(module, EncoderBlock) for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=(3 * module.in_features) ** -0.5)
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=(module.kernel_size[0] * 2 * num_encoder_layers) ** -0.5)
        if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for module in model.modules():
        if isinstance(module, LexicalEmbedding):
            for table in module.tables.values():
                nn.init.normal_(table.weight, std=0.1)
        if isinstance(module, EncoderBlock):
            for last in (module.attention.output, module.feed_forward.contract):
                last.weight.data.div_((2 * num_encoder_layers) ** 0.5)
    for module in model.children():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
