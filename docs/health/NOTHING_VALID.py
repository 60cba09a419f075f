import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import BCELoss

torch.manual_seed(0)
model, criterion = nn.Conv2d(1, 1, 3, padding=1), BCELoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(80):
    images = torch.randn(4, 1, 16, 16)
    masks, ignore = (images > 1).float(), torch.zeros(4, dtype=torch.bool)
    loss = criterion(model(images), masks, valid=ignore)  # inverted: True means annotated
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
