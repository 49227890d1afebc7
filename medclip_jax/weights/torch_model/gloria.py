"""GLoRIA: films and texts as wholes, regions and words."""

import torch
from torch import nn
from torch_model.towers import (
    Images,
    ImageTower,
    Texts,
    TextTower,
    join_pieces,
    square,
    unit,
)

FLOOR = -1e30  # of what takes no part


class GLoRIA(ImageTower, TextTower):
    """Films and texts as a whole, regions and words; `settings["gloria"]` says how."""

    @torch.no_grad()
    def embed_images(self, films_BxHxWx1):
        """uint8 films [B, H, W, 1] of `image_size` pixels -> Images."""
        images_BxF, regions_BxRxC, _ = self._features(films_BxHxWx1)
        regions_BxRxD = self.region_projection(regions_BxRxC)
        joint_BxD = unit(self.image_projection(images_BxF))
        return Images(joint_BxD, regions_BxRxD, square(regions_BxRxD))

    @torch.no_grad()
    def embed_texts(self, texts):
        """{"input_ids", "attention_mask", "word_ids"} of [B, T] -> Texts.

        Slots of words have [CLS] first. Where scores look at as many slots as a text has
        characters, those are needed too: "characters" [B].
        """
        out, mask_BxT = self._read(texts)
        gloria = self.settings["gloria"]
        states_BxTxC = sum(out.hidden_states[-gloria["text_layers"] :])
        word_ids_BxT = self._here(texts["word_ids"]).long()
        words_BxTxC, last_Bx1 = join_pieces(states_BxTxC, word_ids_BxT, mask_BxT)
        if gloria["window"] == "characters":
            last_Bx1 = self._here(texts["characters"])[:, None]
        elif gloria["unknown_id"] >= 0:
            unknown_BxT = self._here(texts["input_ids"]) == gloria["unknown_id"]
            last_Bx1 = last_Bx1 - unknown_BxT.sum(1, keepdim=True)
        slots = torch.arange(words_BxTxC.shape[1], device=mask_BxT.device)
        mask_BxT = (slots >= 1) & (slots <= last_Bx1)
        return Texts(unit(words_BxTxC.mean(1)), words_BxTxC, mask_BxT)

    def tokenize(self, texts):
        """Besides, how many characters each text has."""
        texts = list(texts)
        tokens = super().tokenize(texts)
        # Without "[", as the official code counts.
        tokens["characters"] = torch.tensor([len(t.replace("[", "")) for t in texts])
        return tokens

    def score(self, images, texts, similarity=None):
        """Scores [N, M]: "global" of the whole, "local" of the best word, or "both",
        their mean; by default what `settings["gloria"]["similarity"]` says."""
        similarity = similarity or self.settings["gloria"]["similarity"]
        global_NxM = images.joint_NxD @ texts.joint_MxD.T
        if similarity == "global":
            return global_NxM
        each = zip(texts.words_MxTxD, texts.mask_MxT)
        local_MxN = [self._best(images.regions_NxRxD, *text) for text in each]
        local_NxM = torch.stack(local_MxN, 1)
        return local_NxM if similarity == "local" else (local_NxM + global_NxM) / 2

    def _best(self, regions_NxRxD, words_TxD, mask_T):
        """How well the best word of a text [N] resembles what it finds in each film."""
        how = self.settings["gloria"]["words"]
        if how["unit"]:
            regions_NxRxD, words_TxD = unit(regions_NxRxD), unit(words_TxD)
        weights_NxTxR = words_TxD @ regions_NxRxD.transpose(1, 2)
        if how["attention"] == "words_then_regions":
            weights_NxTxR = weights_NxTxR.masked_fill(~mask_T[:, None], FLOOR)
            weights_NxTxR = weights_NxTxR.softmax(1)
        weights_NxTxR = (how["sharpness"] * weights_NxTxR).softmax(2)
        found_NxTxD = weights_NxTxR @ regions_NxRxD
        cosines_NxT = nn.functional.cosine_similarity(found_NxTxD, words_TxD, dim=-1)
        return (how["focus"] * cosines_NxT).masked_fill(~mask_T, FLOOR).amax(1)
