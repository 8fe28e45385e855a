"""Tiny vision models with random weights, of the real classes, with their real processors, and frames for them."""

import torch

from mllm4d.schema import Clip

CLASSES = ("red ball", "Skateboard", "cat")
WORDS = ("red", "blue", "ball", "skate", "##board", "cat")
SIDE = 64
"""Pixels to which SAM 2 scales frames."""


def stir(model, size):
    """Larger random weights: with the usual ones the tiny models say the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def word_tokenizer():
    """BERT's tokenizer with few words; Grounding DINO's code knows the ids of the special ones by heart."""
    from transformers import BertTokenizer

    fixed = {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    names = ["[PAD]", *WORDS, *(f"[unused{k}]" for k in range(1100))]
    return BertTokenizer(vocab={fixed.get(k, names[k]): k for k in range(1040)})


def save_grounding_dino(folder, queries=12):
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    vision = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = {"model_type": "bert", "vocab_size": 1040, "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    config = GroundingDinoConfig(
        backbone_config=vision,
        text_config=text,
        d_model=32,
        num_queries=queries,
        max_text_len=16,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        encoder_n_points=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        decoder_n_points=2,
    )
    torch.manual_seed(0)
    model = stir(GroundingDinoForObjectDetection(config), 0.05)
    model.save_pretrained(folder)
    image = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image, word_tokenizer()).save_pretrained(folder)


def save_owlv2(folder):
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: k for k, piece in enumerate(pieces)}, merges=[], model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = Owlv2Config(
        text_config={**small, **ids, "vocab_size": len(pieces), "max_position_embeddings": 16},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)


def save_sam2_video(folder):
    """A SAM 2 that never loses an object, with wild masks."""
    from transformers import (
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoMaskDecoderConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoPromptEncoderConfig,
        Sam2VideoVideoProcessor,
        Sam2VisionConfig,
    )

    hiera = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    wide = 128  # SAM 2's code takes it to be more than the memory's 64
    config = Sam2VideoConfig(
        vision_config=Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=wide,
        ),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=wide, image_size=SIDE, mask_input_channels=8),
        # As an object: before 5.20 transformers takes a dict for a prompt encoder's.
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=wide, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
        ),
        image_size=SIDE,
        num_maskmem=3,
        memory_attention_hidden_size=wide,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=wide,
        mask_downsampler_embed_dim=wide,
        memory_fuser_embed_dim=wide,
        memory_fuser_intermediate_dim=32,
    )
    torch.manual_seed(0)
    model = stir(Sam2VideoModel(config), 0.05)
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(1000.0)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    image = Sam2ImageProcessor(size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4})
    Sam2VideoProcessor(image, Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)


def backbone(**settings):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return {**sizes, "num_hidden_layers": 4, **settings}


def depth_anything(kind, **settings):
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    vision = Dinov2Config(**backbone(image_size=56, patch_size=14, out_features=["stage2", "stage4"]))
    vision.reshape_hidden_states = False
    config = DepthAnythingConfig(
        backbone_config=vision,
        reassemble_hidden_size=16,
        reassemble_factors=[4, 2],
        neck_hidden_sizes=[8, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        **settings,
    )
    size = {"height": 56, "width": 56}
    return DepthAnythingForDepthEstimation(config), DPTImageProcessor(
        size=size, keep_aspect_ratio=True, ensure_multiple_of=14
    )


def zoedepth():
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor

    stages = ["stage1", "stage2", "stage3", "stage4"]
    vision = BeitConfig(**backbone(image_size=64, patch_size=8, out_features=stages, use_relative_position_bias=True))
    vision.reshape_hidden_states = False
    config = ZoeDepthConfig(
        backbone_config=vision,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        bin_configurations=[{"n_bins": 4, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    size = {"height": 64, "width": 64}
    return ZoeDepthForDepthEstimation(config), ZoeDepthImageProcessor(size=size, ensure_multiple_of=16)


def glpn():
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    config = GLPNConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    return GLPNForDepthEstimation(config), GLPNImageProcessor()


def depth_pro():
    from transformers import DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor

    vision = {**backbone(num_hidden_layers=2), "model_type": "dinov2", "image_size": 32, "patch_size": 8}
    config = DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[8, 8],
        use_fov_model=True,
        num_fov_head_layers=2,
        image_model_config=dict(vision),
        patch_model_config=dict(vision),
        fov_model_config=dict(vision),
    )
    return DepthProForDepthEstimation(config), DepthProImageProcessor(size={"height": 64, "width": 64})


def dpt():
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        **backbone(image_size=64, patch_size=8),
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return DPTForDepthEstimation(config), DPTImageProcessor(size={"height": 64, "width": 64})


DEPTH = {
    "depth_anything": lambda: depth_anything("metric", max_depth=20),
    "relative": lambda: depth_anything("relative"),
    "zoedepth": zoedepth,
    "glpn": glpn,
    "depth_pro": depth_pro,
    "dpt": dpt,
}


def save_depth(folder, kind):
    """A depth model of one of the kinds in ``DEPTH``."""
    torch.manual_seed(0)
    model, processor = DEPTH[kind]()
    stir(model, 0.01 if kind == "depth_pro" else 0.15)
    with torch.no_grad():  # what is negative, the heads cut off
        if kind == "depth_pro":
            model.fov_model.head.layers[-1].bias.fill_(50.0)  # degrees
            model.head.layers[-2].weight *= 0.002
            model.head.layers[-2].bias.fill_(1.0)
        if kind == "relative":
            model.head.conv3.bias.fill_(1.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def blots(count, height, width):
    """Frames [T, H, W, 3] of smooth random colours."""
    noise = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    frames = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (frames * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def blots_clip(count, height, width, fx=60.0):
    intrinsics = torch.tensor([[fx, 0, (width - 1) / 2], [0, fx, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64)
    times = torch.arange(count, dtype=torch.float64) / 10
    return Clip("blots-0000", "blots", blots(count, height, width), times, 10.0, intrinsics)
