"""MGCA: films and texts as wholes, patches and words, and how much is looked at each."""

import torch
from torch_model.towers import (
    Images,
    ImageTower,
    Texts,
    TextTower,
    join_pieces,
    square,
    unit,
)


class MGCA(ImageTower, TextTower):
    """`settings["shifted_words"]` says how words are weighed."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> Images."""
        images_BxF, regions_BxRxC, looks_BxR = self._features(films_BxHxWx1)
        regions_BxRxD = self.region_projection(regions_BxRxC)
        joint_BxD = unit(self.image_projection(images_BxF))
        return Images(joint_BxD, regions_BxRxD, square(regions_BxRxD), looks_BxR)

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask", "word_ids"} of [B, T] -> Texts.

        There are T - 1 slots of words, [SEP] after the last word.
        """
        out, mask_BxT = self._read(texts)
        word_ids_BxT = self._here(texts["word_ids"]).long()
        states_BxTxC, looks_BxT = (
            out.last_hidden_state,
            out.attentions[-1][:, :, 0].mean(1),
        )
        words_BxTxC, count_Bx1 = join_pieces(states_BxTxC, word_ids_BxT, mask_BxT)
        last_Bx1 = count_Bx1 + 1
        if self.settings["shifted_words"]:
            # A piece has what its successor gets; a full text loses its last word.
            looks_BxT = torch.nn.functional.pad(looks_BxT[:, 1:], (0, 1))
            last_Bx1 = torch.where(mask_BxT[:, -1:] > 0, count_Bx1 - 1, last_Bx1)
        looks_BxTx1 = join_pieces(looks_BxT[..., None], word_ids_BxT, mask_BxT)[0]
        places = torch.arange(words_BxTxC.shape[1], device=mask_BxT.device)
        keep_BxT = places <= last_Bx1
        words_BxTxC = torch.where(keep_BxT[..., None], words_BxTxC, 0)
        looks_BxT = torch.where(keep_BxT, looks_BxTx1[..., 0], 0)
        return Texts(
            unit(self.text_projection(words_BxTxC[:, 0])),
            self.word_projection(words_BxTxC[:, 1:]),
            keep_BxT[:, 1:],
            looks_BxT[:, 1:],
        )

    def score(self, images, texts):
        """Scaled cosines [N, M] of the wholes."""
        return self.settings["scale"] * images.joint_NxD @ texts.joint_MxD.T
