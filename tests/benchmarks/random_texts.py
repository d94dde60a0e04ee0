"""RandomTexts: texts of random tokens, and a BERT of random weights that reads them."""

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


class RandomTexts(Dataset):
    """Texts of one length with random labels.

    Args:
        num_texts: How many.
        length: Tokens of each.
        vocabulary: Tokens that there are.
    """

    def __init__(self, num_texts: int, length: int, vocabulary: int) -> None:
        self.input_ids = torch.randint(vocabulary, (num_texts, length))
        self.attention_mask = torch.ones(length, dtype=torch.long)
        self.labels = torch.randint(2, (num_texts,))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a text and its label."""
        text = {"input_ids": self.input_ids[index], "attention_mask": self.attention_mask}
        return text | {"labels": self.labels[index]}


class RandomTextData(LightningDataModule):
    """Loads random texts, for training and validation alike.

    Args:
        texts: The texts.
        batch_size: Texts a step.
    """

    def __init__(self, texts: RandomTexts, batch_size: int) -> None:
        super().__init__()
        self.texts = texts
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """Return the training batches."""
        return DataLoader(self.texts, self.batch_size, shuffle=True, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader:
        """Return the validation batches."""
        return DataLoader(self.texts, self.batch_size)


def save_random_bert(config: BertConfig, folder: Path) -> Path:
    """Write a BERT of random weights and a tokenizer, and return the folder."""
    BertModel(config).save_pretrained(folder)
    vocabulary = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder
