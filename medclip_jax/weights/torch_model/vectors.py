"""Models of one vector a film or a text: CLIP and its kin, SimCLR, MoCo v2, and
classifiers."""

import torch
from torch_model.towers import ImageTower, TextTower, unit


class ImageOnly(ImageTower):
    """SimCLR and MoCo v2: the image tower, and its head."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> features [B, F]."""
        return self._features(films_BxHxWx1)[0]

    @torch.no_grad()
    def project(self, images_NxF):
        """Features [N, F] -> [N, D] of length 1, what training compared crops by."""
        return unit(self.image_projection(images_NxF))


class Classifier(ImageTower):
    """The image tower, and a logit for each of `settings["findings"]`."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> features [B, F]."""
        return self._features(films_BxHxWx1)[0]

    @torch.no_grad()
    def class_logits(self, images_NxF):
        """Features [N, F] -> logits [N, findings]; a sigmoid makes each a share."""
        return self.classifier(images_NxF)


class DualEncoder(ImageTower, TextTower):
    """Image and text towers into one space."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> [B, D] of length 1."""
        return unit(self.image_projection(self._features(films_BxHxWx1)[0]))

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask"} of [B, T] -> [B, D] of length 1.

        Where padding takes part in the pooling, T must be `text_length`.
        """
        out, mask = self._read(texts)
        return unit(self.text_projection(self._pool(out, mask)))

    def _pool(self, out, mask):
        pool = self.settings["text_pool"]
        if pool == "cls":
            return out.last_hidden_state[:, 0]
        if pool == "pooler":
            return out.pooler_output
        keep = torch.ones_like(mask) if self.settings["pool_padding"] else mask
        keep = (keep > 0)[..., None]
        if pool == "max":
            return out.last_hidden_state.masked_fill(~keep, -torch.inf).amax(1)
        layers = (1, 2, -1) if pool == "layers_1_2_last" else (-1,)
        words = sum(out.hidden_states[i] for i in layers) / len(layers)
        return (words * keep).sum(1) / keep.sum(1).clamp(min=1)

    def score(self, images_NxD, texts_MxD):
        """Scaled cosines [N, M], plus the bias of a sigmoid loss where there is one."""
        return self.settings["scale"] * images_NxD @ texts_MxD.T + self.settings["bias"]
