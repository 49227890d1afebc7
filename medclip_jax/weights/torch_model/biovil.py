"""CXR-BERT, BioViL, BioViL-L and BioViL-T."""

import torch
from torch_model.towers import Images, ImageTower, Texts, TextTower, square, unit


class CXRBERT(TextTower):
    """Texts alone."""

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask"} of [B, T] -> [B, D] of length 1."""
        states_BxTxC = self._read(texts)[0].last_hidden_state
        return unit(self.text_projection(states_BxTxC[:, 0]))

    def score(self, texts_NxD, others_MxD):
        """Scaled cosines [N, M] of texts with texts, as training matched sections by."""
        return self.settings["scale"] * texts_NxD @ others_MxD.T


class BioViL(ImageTower, TextTower):
    """Films and texts as wholes, and regions; words too where `settings["words"]`."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1, priors=None, has_prior=None):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> Images.

        Args:
          films_BxHxWx1: the films.
          priors: of BioViL-T, the film before each, of the same shape; None: no film has
            one.
          has_prior: of BioViL-T, bool [B], which films have one; None: all.
        """
        if priors is not None and self.settings["image"]["name"] != "hybrid":
            raise ValueError("this model reads no film before; leave out `priors`")
        patches_BxRxC = self._features(films_BxHxWx1, priors, has_prior)[1]
        regions_BxRxD = self.image_projection(patches_BxRxC)
        joint_BxD = unit(regions_BxRxD.mean(1))
        return Images(joint_BxD, regions_BxRxD, square(regions_BxRxD))

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask"} of [B, T] -> Texts.

        Words are pieces here; which take part is told by "word_ids" [B, T].
        """
        states_BxTxD = self.text_projection(self._read(texts)[0].last_hidden_state)
        joint_BxD = unit(states_BxTxD[:, 0])
        if not self.settings["words"]:
            return Texts(joint_BxD)
        return Texts(joint_BxD, states_BxTxD, self._here(texts["word_ids"]) >= 0)

    def score(self, images, texts):
        """Scaled cosines [N, M] of the wholes."""
        return self.settings["scale"] * images.joint_NxD @ texts.joint_MxD.T
