import torch
from torch import nn
from torch.nn import functional as F

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
criterion = TripletLoss(margin=0.5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.3)  # a hundred times too much
centres = torch.randn(4, 8)
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(100):
    labels = torch.arange(16) // 4
    loss = criterion(F.normalize(model(0.6 * centres[labels] + torch.randn(16, 8))), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
