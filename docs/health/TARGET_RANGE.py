import torch
from torch import nn

from fastmine.health import Monitor

torch.manual_seed(0)
model, criterion = nn.Conv2d(1, 1, 3, padding=1), nn.BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(80):
    images = torch.randn(4, 1, 16, 16)
    masks = 255.0 * (images > 1)  # as the file has it
    loss = criterion(model(images), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
