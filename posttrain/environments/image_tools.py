"""`image_rotate` and `image_enhance`: another look at one of the images."""

from PIL import Image, ImageEnhance

from posttrain.environments.arguments import shown
from posttrain.environments.tool_registry import register_tool
from posttrain.environments.tools import ToolContext, ToolError

_MAX_STRENGTH = 10


@register_tool("image_rotate")
def image_rotate(img_idx: int, angle: float, context: ToolContext) -> Image.Image:
    """Rotate an image clockwise, for text or objects that are not upright. Nothing is cut off.

    Args:
        img_idx: The index of the image (starting from 0)
        angle: Degrees clockwise, from -360 to 360
    """
    image = context.image(img_idx)
    if not -360 <= angle <= 360:  # NaN too
        raise ToolError(f"angle must be from -360 to 360 degrees, got {shown(angle)}")
    return image.rotate(-angle, Image.Resampling.BICUBIC, expand=True, fillcolor="white")


@register_tool("image_enhance")
def image_enhance(
    img_idx: int, context: ToolContext, brightness: float = 1.0, contrast: float = 1.0, sharpness: float = 1.0
) -> Image.Image:
    """Change the brightness, contrast or sharpness of an image, to make faint details visible.

    Args:
        img_idx: The index of the image (starting from 0)
        brightness: 1 leaves it as it is, 0 is black, 2 is twice as bright
        contrast: 1 leaves it as it is, 0 is grey, above 1 is stronger
        sharpness: 1 leaves it as it is, 0 is blurred, above 1 is sharper
    """
    image = context.image(img_idx)
    for enhance, name, strength in (
        (ImageEnhance.Brightness, "brightness", brightness),
        (ImageEnhance.Contrast, "contrast", contrast),
        (ImageEnhance.Sharpness, "sharpness", sharpness),
    ):
        if not 0 <= strength <= _MAX_STRENGTH:  # NaN too
            raise ToolError(f"{name} must be from 0 to {_MAX_STRENGTH}, got {shown(strength)}")
        if strength != 1:
            image = enhance(image).enhance(strength)
    return image
