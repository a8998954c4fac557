"""Our Mix Transformer against transformers' SegFormer."""

import pytest
import torch

from bidir.method.mix_transformer import VARIANTS, Attention, MixTransformer
from bidir.method.weights import mix_transformer_state

COUNTS = {"mit_b0": 3.3e6, "mit_b1": 13.2e6, "mit_b2": 24.2e6, "mit_b3": 44.1e6, "mit_b4": 60.8e6, "mit_b5": 81.4e6}


def test_features_are_those_of_segformer(segformer):
    """Standard strides, the same random weights, an input that is no multiple of 32."""
    ours = MixTransformer(*VARIANTS["mit_b0"], strides=(4, 2, 2, 2)).eval()
    ours.load_state_dict(mix_transformer_state(segformer.state_dict()))
    image = torch.rand(2, 3, 100, 68) * 255
    with torch.no_grad():
        features, attention = ours(image, attention=True)
        theirs = segformer((image - ours.mean) / ours.std, output_hidden_states=True, output_attentions=True)
    for mine, other in zip(features, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    # theirs is after scale and softmax, of all blocks; ours before both, of the last two
    torch.testing.assert_close(
        (attention / 32**0.5).softmax(-1), torch.cat(theirs.attentions[-2:], 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts(name):
    """Of the SegFormer paper's table of encoders (without classifier), to the precision it gives."""
    with torch.device("meta"):
        count = sum(p.numel() for p in MixTransformer(*VARIANTS[name]).parameters())
    assert count == pytest.approx(COUNTS[name], rel=0.02)


def test_the_kept_attention_is_before_its_scale():
    """q k^T written out head by head from the block's own weights, and the output from its scaled softmax."""
    torch.manual_seed(0)
    attention = Attention(24, heads=3, sr_ratio=1).double()
    x = torch.randn(2, 10, 24, dtype=torch.float64)
    out, kept = attention(x, (2, 5), keep=True)
    q = x @ attention.q.weight.T + attention.q.bias
    kv = x @ attention.kv.weight.T + attention.kv.bias
    mixed = []
    for head in range(3):
        at = slice(8 * head, 8 * head + 8)
        scores = q[..., at] @ kv[..., :24][..., at].transpose(1, 2)
        torch.testing.assert_close(kept[:, head], scores)
        mixed.append((scores / 8**0.5).softmax(-1) @ kv[..., 24:][..., at])
    torch.testing.assert_close(out, torch.cat(mixed, -1) @ attention.proj.weight.T + attention.proj.bias)


def test_norms_of_patches_and_reduced_keys_have_another_epsilon():
    encoder = MixTransformer(*VARIANTS["mit_b0"])
    for name, module in encoder.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            reduced = "patch_embed" in name or name.endswith("attention.norm")
            assert module.eps == (1e-5 if reduced else 1e-6), name
